"""Requests as no sane client sends them, and some as sane ones do: what is sent, and whether an edge has to refuse it.

Each is one group of PROXY duties: the request line, `Host`, header fields, framing, chunks, limits. `{P}` is a path that tells it from all others.
"""

HOST = b"Host: a.test\r\n"


def get(fields=b"", line=b"GET {P} HTTP/1.1", host=HOST, end=b"\r\n"):
    return line + b"\r\n" + host + fields + end


def post(fields, body=b"", host=HOST):
    return b"POST {P} HTTP/1.1\r\n" + host + fields + b"\r\n" + body


def chunked(body, fields=b"Transfer-Encoding: chunked\r\n"):
    return post(fields, body)


REFUSED = {
    # The request line (RFC 9112 section 3).
    "no version": get(line=b"GET {P}"),
    "HTTP/0.9 alone": b"GET {P}\r\n",
    "a version of two digits": get(line=b"GET {P} HTTP/1.10"),
    "HTTP/2.0 as text": get(line=b"GET {P} HTTP/2.0"),
    "a version that is none": get(line=b"GET {P} HTTP/x.1"),
    "a version in small letters": get(line=b"GET {P} http/1.1"),
    "two spaces behind the method": get(line=b"GET  {P} HTTP/1.1"),
    "two spaces before the version": get(line=b"GET {P}  HTTP/1.1"),
    "a tab for a space": get(line=b"GET\t{P} HTTP/1.1"),
    "a space in the target": get(line=b"GET {P}/a b HTTP/1.1"),
    "a space before the method": get(line=b" GET {P} HTTP/1.1"),
    "a space behind the version": get(line=b"GET {P} HTTP/1.1 "),
    "a method with a bracket": get(line=b"G(T {P} HTTP/1.1"),
    "no method": get(line=b" {P} HTTP/1.1"),
    "no target": get(line=b"GET HTTP/1.1"),
    "a target without a slash": get(line=b"GET a{P} HTTP/1.1"),
    "* of a GET": get(b"X: {P}\r\n", line=b"GET * HTTP/1.1"),
    "a fragment": get(line=b"GET {P}#a HTTP/1.1"),
    "a NUL in the target": get(line=b"GET {P}\0 HTTP/1.1"),
    "a control character in the target": get(line=b"GET {P}\x01 HTTP/1.1"),
    "DEL in the target": get(line=b"GET {P}\x7f HTTP/1.1"),
    "a letter beyond ASCII in the target": get(line=b"GET {P}\xc3\xa4 HTTP/1.1"),
    "a bare CR in the request line": get(line=b"GET {P}\rX HTTP/1.1"),
    "TRACE": get(line=b"TRACE {P} HTTP/1.1"),
    "CONNECT": get(b"X: {P}\r\n", line=b"CONNECT a.test:80 HTTP/1.1"),
    "a target of 9,000 bytes": get(line=b"GET {P}" + b"a" * 9000 + b" HTTP/1.1"),
    # Host (RFC 9112 section 3.2).
    "no Host": get(host=b""),
    "two Hosts": get(host=HOST * 2),
    "two Hosts that differ": get(host=HOST + b"Host: b.test\r\n"),
    "two names in a Host": get(host=b"Host: a.test, b.test\r\n"),
    "a Host with a path": get(host=b"Host: a.test/x\r\n"),
    "a Host with a user": get(host=b"Host: u@a.test\r\n"),
    "a Host with a space": get(host=b"Host: a test\r\n"),
    "a Host with a bad port": get(host=b"Host: a.test:80a\r\n"),
    "a Host with a port that is too large": get(host=b"Host: a.test:99999\r\n"),
    "a Host with an open bracket": get(host=b"Host: [::1\r\n"),
    "a Host with a NUL": get(host=b"Host: a\0.test\r\n"),
    "a Host with a letter beyond ASCII": get(host=b"Host: \xc3\xa4.test\r\n"),
    "an empty Host": get(host=b"Host:\r\n"),
    # Fields (RFC 9112 section 5, RFC 9110 section 5).
    "a space before the colon": get(b"X-A : b\r\n"),
    "a tab before the colon": get(b"X-A\t: b\r\n"),
    "a folded line": get(b"X-A: b\r\n c\r\n"),
    "a first line that is folded": get(b" X-A: b\r\n", host=b"") + HOST,
    "no colon": get(b"X-A\r\n"),
    "an empty name": get(b": b\r\n"),
    "a name with a bracket": get(b"X(A: b\r\n"),
    "a name with a letter beyond ASCII": get(b"X-\xc3\xa4: b\r\n"),
    "a name with a NUL": get(b"X\0A: b\r\n"),
    "a NUL in a value": get(b"X-A: b\0c\r\n"),
    "a bare CR in a value": get(b"X-A: b\rc\r\n"),
    "a bare CR as the end of a line": get(b"X-A: b\rX-B: c\r\n"),
    "a control character in a value": get(b"X-A: b\x01c\r\n"),
    "150 fields": get(b"".join(b"X-%d: a\r\n" % n for n in range(150))),
    "fields of 80 KB": get(b"X-A: " + b"a" * 80_000 + b"\r\n"),
    "an Expect that nobody knows": post(b"Expect: 200-maybe\r\nContent-Length: 1\r\n", b"a"),
    # Framing (RFC 9112 section 6).
    "two lengths that differ": post(b"Content-Length: 1\r\nContent-Length: 2\r\n", b"ab"),
    "a list of lengths that differ": post(b"Content-Length: 1, 2\r\n", b"ab"),
    "a length with a sign": post(b"Content-Length: +1\r\n", b"a"),
    "a negative length": post(b"Content-Length: -1\r\n", b"a"),
    "a length in hex": post(b"Content-Length: 0x1\r\n", b"a"),
    "a length with a space": post(b"Content-Length: 1 1\r\n", b"a" * 11),
    "an empty length": post(b"Content-Length:\r\n"),
    "a length of 2^64": post(b"Content-Length: 18446744073709551617\r\n", b"a"),
    "a coding that nobody knows": post(b"Transfer-Encoding: foo\r\n", b"0\r\n\r\n"),
    "chunked that is not last": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "chunked with a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "chunked in HTTP/1.0": b"POST {P} HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # Chunks (RFC 9112 section 7.1).
    "a chunk's size with a sign": chunked(b"+1\r\na\r\n0\r\n\r\n"),
    "a chunk's size in 0x": chunked(b"0x1\r\na\r\n0\r\n\r\n"),
    "a chunk's size of 2^68": chunked(b"100000000000000001\r\na\r\n0\r\n\r\n"),
    "a chunk without a size": chunked(b"\r\na\r\n0\r\n\r\n"),
    "a chunk longer than it says": chunked(b"1\r\nab\r\n0\r\n\r\n"),
    "a chunk that ends in LF": chunked(b"1\r\na\n0\r\n\r\n"),
}

# Ambiguous, and still to be had: what goes upstream has to be framed in one way alone, and the connection is not used again.
NORMALISED = {
    "a length and chunks": chunked(b"0\r\n\r\n", b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
    "chunks and a length": chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"),
    "lines that end in LF": b"GET {P} HTTP/1.1\nHost: a.test\n\n",
    "one line that ends in LF": get(b"X-A: b\n"),
    "equal lengths": post(b"Content-Length: 1\r\nContent-Length: 1\r\n", b"a"),
    "a length with zeros before it": post(b"Content-Length: 001\r\n", b"a"),
}

# What sane clients send.
TAKEN = {
    "a plain GET": get(),
    "HTTP/1.0": b"GET {P} HTTP/1.0\r\n" + HOST + b"\r\n",
    "a Host with a port": get(host=b"Host: a.test:8080\r\n"),
    "a Host in capitals": get(host=b"Host: A.TEST\r\n"),
    "a Host with a dot at its end": get(host=b"Host: a.test.\r\n"),
    "the absolute form": get(line=b"GET http://a.test{P} HTTP/1.1"),
    "a query": get(line=b"GET {P}?a=b&c=%20 HTTP/1.1"),
    "an encoded slash": get(line=b"GET {P}%2Fa HTTP/1.1"),
    "two slashes": get(line=b"GET {P}//a HTTP/1.1"),
    "dots": get(line=b"GET {P}/../a{P} HTTP/1.1"),
    "a target of 4,000 bytes": get(line=b"GET {P}" + b"a" * 4000 + b" HTTP/1.1"),
    "an empty value": get(b"X-A:\r\n"),
    "a value with a tab": get(b"X-A: b\tc\r\n"),
    "a value beyond ASCII": get(b"X-A: \xc3\xa4\r\n"),
    "no space behind the colon": get(b"X-A:b\r\n"),
    "spaces behind a value": get(b"X-A: b  \r\n"),
    "a name with an apostrophe": get(b"X-A'b: c\r\n"),
    "60 fields": get(b"".join(b"X-%d: a\r\n" % n for n in range(60))),
    "a field of 7 KB": get(b"X-A: " + b"a" * 7000 + b"\r\n"),
    "a method of one's own": get(line=b"PURGE {P} HTTP/1.1"),
    "a body with a length": post(b"Content-Length: 1\r\n", b"a"),
    "no body": post(b"Content-Length: 0\r\n"),
    "a body in chunks": chunked(b"1\r\na\r\n0\r\n\r\n"),
    "chunks with an extension": chunked(b"1;a=b\r\na\r\n0\r\n\r\n"),
    "chunks with a trailer": chunked(b"1\r\na\r\n0\r\nX-A: b\r\n\r\n"),
    "a chunk's size in capitals": chunked(b"A\r\n0123456789\r\n0\r\n\r\n"),
    "a GET with a body": get(b"Content-Length: 1\r\n") + b"a",
    "an empty line before it": b"\r\n" + get(),
    "Expect: 100-continue": post(b"Expect: 100-continue\r\nContent-Length: 1\r\n", b"a"),
    "Connection: close": get(b"Connection: close\r\n"),
}
