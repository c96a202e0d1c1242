"""A gRPC server of another make: three ways of echoing bytes, at the port that PORT names."""

import os
import signal
from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        kinds = {
            "/echo.Echo/Once": grpc.unary_unary_rpc_method_handler(lambda sent, context: sent),
            "/echo.Echo/Many": grpc.unary_stream_rpc_method_handler(lambda sent, context: iter([sent] * 20)),
            "/echo.Echo/Both": grpc.stream_stream_rpc_method_handler(lambda sent, context: sent),
            "/echo.Echo/Fail": grpc.unary_unary_rpc_method_handler(
                lambda sent, context: context.abort(grpc.StatusCode.NOT_FOUND, "none of that name")),
        }
        return kinds.get(call.method)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
server.start()
# In flight ends first, as in any app that ends in order.
signal.signal(signal.SIGTERM, lambda *_: server.stop(30))
server.wait_for_termination()
