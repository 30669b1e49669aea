"""Moves KV blocks from one executor's cache to another's; transfer.proto tells what passes between the two.

The one that receives has a `Receiver` and grants leases; the one that sends has a `Sender` and pushes. Which block goes
where, and when, is for the scheduler to say: nothing here knows of requests, plans or gRPC.

    leases.py        which push may write which block: the only way into the cache
    receiver.py      the receiving thread; intake.py is its side of the protocol
    sender.py        the pushing side and its thread; link.py is one connection, outbox.py what waits to pass it
    block_memory.py  a cache as bytes
    mailbox.py       shared memory; slots.py hands out parts of it
    endpoints.py     addresses

A further way (CUDA IPC, NIXL) is a further scheme in endpoints.py, and a place for pieces beside `Mailbox`.
"""
