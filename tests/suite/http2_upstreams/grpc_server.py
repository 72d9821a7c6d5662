"""A server of gRPC whose messages are plain bytes: grpc_server.py CERTIFICATE KEY, prints its port."""

import concurrent.futures
import sys
import time

import grpc


def echo(request, context):
    context.set_trailing_metadata((("x-end", "whole"),))
    return request


def not_found(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100 % sure")


def two_then_aborted(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.ABORTED, "enough")


def quiet(request, context):
    yield b"one"
    time.sleep(float(request))
    yield b"two"


def chat(requests, context):
    for request in requests:
        yield request


def count(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def many(request, context):
    for number in range(2000):
        yield b"%d" % number + b"x" * 1000


def slow(request, context):
    time.sleep(10)
    return b"late"


def remaining(request, context):
    return str(context.time_remaining()).encode()


unary = grpc.unary_unary_rpc_method_handler
streaming = grpc.unary_stream_rpc_method_handler
handlers = {
    "Echo": unary(echo),
    "NotFound": unary(not_found),
    "TwoThenAborted": streaming(two_then_aborted),
    "Quiet": streaming(quiet),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Count": grpc.stream_unary_rpc_method_handler(count),
    "Many": streaming(many),
    "Slow": unary(slow),
    "Remaining": unary(remaining),
}
certificate, key = (open(name, "rb").read() for name in sys.argv[1:3])
server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", handlers),))
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
server.start()
print(port, flush=True)
sys.stdin.read()
