"""One end in a process of its own, driven by lines on stdin; answers with lines on stdout.

python transfer_child.py sender      <- {"endpoints": [...], "transfer_id": 1, "first": 0, "blocks": [...]}
                                     -> "pushed", and "failed <id> <reason>" for each failure
python transfer_child.py receiver    -> its endpoints, as JSON; it grants transfer 1 all blocks
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from transfer_ends import LAYOUT, NIXL, NUM_BLOCKS, empty_cache, full_cache, shared_sender

from pagoda.executor.transfer import intake, sender
from pagoda.executor.transfer.receiver import Receiver


def send() -> None:
    # Pieces of two blocks.
    sender.MAX_PIECE_BYTES = intake.MAX_PIECE_BYTES = 1600
    end = shared_sender(full_cache())
    threading.Thread(target=_tell_failures, args=[end], daemon=True).start()
    for line in sys.stdin:
        order = json.loads(line)
        end.push(order["endpoints"], order["transfer_id"], order["first"], order["blocks"])
        print("pushed", flush=True)
    end.close()


def receive() -> None:
    end = Receiver(empty_cache(), 2, LAYOUT, nixl=NIXL)
    end.grant(1, list(range(NUM_BLOCKS)), 60)
    print(json.dumps(end.endpoints), flush=True)
    sys.stdin.read()
    end.close()


def _tell_failures(end: sender.Sender) -> None:
    import select

    while select.select([end], [], [])[0]:
        for transfer_id, reason in end.take_failures():
            print("failed", transfer_id, reason, flush=True)


if __name__ == "__main__":
    {"sender": send, "receiver": receive}[sys.argv[1]]()
