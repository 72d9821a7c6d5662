"""Calls through the gate: grpc_client.py PORT CA KEY, prints what each call came to."""

import queue
import sys
import threading
import time

import grpc

port, authority, key = sys.argv[1:4]
credentials = grpc.ssl_channel_credentials(open(authority, "rb").read())
channel = grpc.secure_channel(f"localhost:{port}", credentials)
caller = (("x-api-key", key),)


def outcome(name, call):
    """`name: messages, then the code of the status and its text`."""
    messages = []
    try:
        answer = call()
        if isinstance(answer, bytes):
            messages.append(answer.decode())
        else:
            for message in answer:
                messages.append(message.decode())
        code, details = 0, ""
    except grpc.RpcError as error:
        code, details = error.code().value[0], error.details()
    print(f"{name}: {' '.join(messages)} [{code}] {details}", flush=True)


def unary(path):
    return channel.unary_unary(path)


def stream(path):
    return channel.unary_stream(path)


def full(name):
    return f"/test.Calls/{name}"


outcome("echo", lambda: unary(full("Echo"))(b"hello", metadata=caller))
outcome("not found", lambda: unary(full("NotFound"))(b"", metadata=caller))
outcome("two", lambda: stream(full("TwoThenAborted"))(b"", metadata=caller))
outcome("quiet", lambda: stream(full("Quiet"))(b"4", metadata=caller))
outcome("no key", lambda: unary("/locked.Calls/Any")(b""))
outcome("forbidden", lambda: unary("/locked.Calls/Any")(b"", metadata=(("x-api-key", "other-case-key-2"),)))
outcome("no route", lambda: unary("/nowhere.Calls/Echo")(b"", metadata=caller))
outcome("slow", lambda: unary(full("Slow"))(b"", metadata=caller))
outcome("client's deadline", lambda: unary(full("Slow"))(b"", metadata=caller, timeout=0.3))
outcome("cut", lambda: stream("/cut.Calls/Any")(b"", metadata=caller))
outcome("unreachable", lambda: unary("/dead.Calls/Any")(b"", metadata=caller))

answer = unary(full("Remaining"))(b"", metadata=caller, timeout=8)
print("remaining:", 6 < float(answer) < 9, answer)

answer, call = unary(full("Echo")).with_call(b"x", metadata=caller)
print("trailers:", dict(call.trailing_metadata()).get("x-end"))

pieces = (b"y" * 10_000 for _ in range(300))
print("count:", channel.stream_unary(full("Count"))(pieces, metadata=caller).decode())
print("many:", sum(1 for _ in stream(full("Many"))(b"", metadata=caller)))

# Each message is answered before the next is sent; with long pauses on both sides.
sent = queue.Queue()
chat = channel.stream_stream(full("Chat"))(iter(sent.get, None), metadata=caller)
times = []
for text in (b"a", b"b", b"c"):
    began = time.monotonic()
    sent.put(text)
    assert next(chat) == text
    times.append(time.monotonic() - began)
    time.sleep(2.5)
sent.put(None)
assert list(chat) == []
print("chat:", chat.code().value[0], max(times) < 1)

# A stream that the client leaves does not disturb the others.
left = stream(full("Many"))(b"", metadata=caller)
next(left)
left.cancel()
threads = [threading.Thread(target=lambda: unary(full("Echo"))(b"z" * 1000, metadata=caller)) for _ in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
outcome("after", lambda: unary(full("Echo"))(b"well", metadata=caller))
outcome("first", lambda: unary("/few.Calls/Echo")(b"", metadata=caller))
outcome("limited", lambda: unary("/few.Calls/Echo")(b"", metadata=caller))
