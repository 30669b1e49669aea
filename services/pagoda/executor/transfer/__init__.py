"""Moves KV blocks from one executor's cache to another's; transfer.proto tells what passes between the two.

The one that receives has a `Receiver` and grants leases; the one that sends has a `Sender` and pushes. Which block goes
where, and when, is for the scheduler to say: nothing here knows of requests, plans or gRPC.

    leases.py         which push may write which block: the only way into the cache
    receiver.py       the receiving thread; intake.py is its side of the protocol
    sender.py         the pushing side and its thread; link.py is one connection, outbox.py what waits to pass it
    block_memory.py   a cache as bytes; device_blocks.py is one in a GPU's memory
    source.py         a sender's memory, as the receiver reads it
    shared_memory.py  a cache that other processes of this host read; cuda_memory.py is one in a GPU's memory
    nixl_memory.py    a cache that others read through NIXL
    endpoints.py      addresses
    allocator.py      keeps memory for what is received

A receiver that can read the sender's memory copies blocks from there, once; to others the sender brings them. A further
way of reading is a further `Source`, and a scheme in endpoints.py.
"""
