-- What wrk sends, and what it tells at the end: one line of JSON.
-- Two arguments: how many host names are asked for in turn, 0 for the one of the URL; and how many bytes are uploaded.

function init(arguments)
  local hosts, upload = tonumber(arguments[1]), tonumber(arguments[2])
  if upload > 0 then
    wrk.method, wrk.body = "POST", string.rep("x", upload)
  end
  if hosts == 0 then
    return
  end
  -- A function of that name makes wrk ask it for each request; without one it repeats the same bytes.
  local requests, at = {}, 0
  for number = 0, hosts - 1 do
    requests[number] = wrk.format(nil, nil, { Host = string.format("h%05d.t", number) })
  end
  function request()
    -- Far from the last one, and through all of them: the step has no factor in common with their number.
    at = (at + 61803) % hosts
    return requests[at]
  end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,'
      .. '"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout
  ))
end
