# Two servers that answer with their names, and a client that calls what each line of its input says: TARGET METHOD.
import concurrent.futures, json, sys

import grpc


class Named(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()

    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.name)


def serve(name):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=[Named(name)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def call(channel, method):
    try:
        return channel.unary_unary(method)(b"", timeout=5).decode()
    except grpc.RpcError as error:
        print(error.details(), file=sys.stderr)
        return error.code().name


servers = [serve(name) for name in ("first", "second")]
print(json.dumps([port for _, port in servers]), flush=True)
channels = {}
for line in sys.stdin:
    target, method = line.split()
    if target not in channels:
        channels[target] = grpc.insecure_channel(target)
    first = call(channels[target], method)
    count = 19 if first in ("first", "second") else 0
    print(json.dumps([first] + [call(channels[target], method) for _ in range(count)]), flush=True)
