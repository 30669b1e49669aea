"""The transfers of an executor: what plans say of grants and pushes, and what the scheduler is told of them.

The blocks themselves are moved by `transfer`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagoda.executor.description import describe_layout
from pagoda.executor.plan_arrays import PlanError, read_indices
from pagoda.executor.runner import Runner
from pagoda.executor.transfer.nixl_memory import Nixl
from pagoda.executor.transfer.receiver import Receiver
from pagoda.executor.transfer.reports import Counters
from pagoda.executor.transfer.sender import Sender
from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u64
from pagoda.rpc.curve import new_key_pair
from pagoda.v1 import scheduler_pb2, step_pb2

# Of the cache.
_BLOCK_AXIS = 2


class Transfers:
    """Both directions, for one cache.

    Blocks are copied beside the steps that run, and on a GPU nothing orders the two but what the host does, and when:

    - What is pushed has been computed: `push` comes when the steps before its plan have ended, not when the plan comes,
      which is while the last of them runs.
    - It stays as it is until it has arrived: the scheduler lends it (`pagoda.scheduler.core.lane.Lane.lend`).
    - No step that runs uses blocks of a grant: others push for it only after the plan that brought it has come back.
    - What has arrived is in the cache: arrivals are told when the device has written it, and steps that read it are
      planned, and launched, after that.
    """

    def __init__(self, receiver: Receiver, sender: Sender, num_blocks: int, *, only: str | None = None) -> None:
        """num_blocks: of the cache
        only: the scheme of the endpoints that others are told of; of all, if not given
        """
        self.receiver = receiver
        self.sender = sender
        self._num_blocks = num_blocks
        self._only = only

    @property
    def endpoints(self) -> list[str]:
        """For other executors, until `reset`."""
        return [each for each in self.receiver.endpoints if self._only in (None, each.partition(":")[0])]

    @property
    def filenos(self) -> Sequence[int]:
        """One of them is readable when there is news."""
        return self.receiver.fileno(), self.sender.fileno()

    def apply(self, plan: step_pb2.StepPlan) -> None:
        """Grants end and begin; then the cache may be written to, but for blocks of grants.

        Raises PlanError for blocks that do not exist and for grants that cannot be.
        """
        if plan.withdrawn_grants:
            for number in unpack_u64(plan.withdrawn_grants).tolist():
                self.receiver.revoke(number)
        for grant in plan.grants:
            block_ids = read_indices(grant.block_ids, "grants.block_ids", self._num_blocks)
            try:
                self.receiver.grant(grant.number, block_ids, grant.timeout_s)
            except ValueError as error:
                raise PlanError(str(error)) from None

    def push(self, plan: step_pb2.StepPlan) -> None:
        """Blocks that earlier steps have computed are ready to leave. Raises PlanError for those that do not exist."""
        for push in plan.pushes:
            block_ids = read_indices(push.block_ids, "pushes.block_ids", self._num_blocks)
            self.sender.push(push.endpoints, push.number, push.first_position, block_ids)

    def add_news(self, message: step_pb2.ExecutorMessage) -> bool:
        """What happened since it was last asked. False: nothing."""
        arrivals = self.receiver.take_arrivals()
        if arrivals:
            numbers, counts = zip(*arrivals, strict=True)
            message.arrived_grants, message.arrived_counts = pack_u64(numbers), pack_u32(counts)
        failures = [*self.sender.take_failures(), *self.receiver.take_failures()]
        for number, reason in failures:
            message.failed_pushes.add(number=number, reason=reason)
        return bool(arrivals or failures)

    def stats(self) -> scheduler_pb2.TransferStats:
        """What was sent and received since the start. Usable from any thread."""
        return scheduler_pb2.TransferStats(
            sent=_describe(self.sender.counters()), received=_describe(self.receiver.counters())
        )

    def reset(self) -> None:
        """A session is over: nothing that was granted or pushed in it counts any more."""
        self.receiver.reset()
        self.sender.reset()

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def _describe(counters: Counters) -> scheduler_pb2.TransferCounters:
    return scheduler_pb2.TransferCounters(
        blocks=counters.blocks,
        bytes=counters.bytes,
        seconds=counters.seconds,
        failures={str(reason): count for reason, count in counters.failures.items()},
        late_blocks=counters.late_blocks,
        duplicate_blocks=counters.duplicate_blocks,
    )


def make_transfers(runner: Runner, listen: str | None, *, only: str | None = None, encrypted: bool) -> Transfers:
    """For the runner's cache.

    listen: see `Receiver`
    only: see `Transfers`; "nixl" needs NIXL and an address to listen on, "cuda" a cache in a GPU's memory
    encrypted: with a key of this process's own, which the scheduler tells those who push

    Raises ValueError, naming the option, for an address that cannot be listened on, and where CUDA or NIXL cannot be
    used.
    """
    if only == "cuda" and not runner.cache.is_cuda:
        raise ValueError("--transfer is cuda, but the KV cache is in the CPU's memory: take another, or --device cuda")
    layout = describe_layout(runner.layout)
    try:
        nixl = Nixl(listen) if listen and only == "nixl" else None
        sender = Sender(runner.cache, _BLOCK_AXIS, layout, shared_memory=runner.shared_memory, nixl=nixl)
    except (ValueError, OSError) as error:
        raise ValueError(f"--transfer nixl: {error}") from None
    try:
        curve = new_key_pair() if encrypted else None
        receiver = Receiver(runner.cache, _BLOCK_AXIS, layout, listen=listen, curve=curve, nixl=nixl)
    except (ValueError, OSError) as error:
        sender.close()
        raise ValueError(f"--transfer-endpoint {listen}: {error}") from None
    return Transfers(receiver, sender, runner.layout.num_blocks, only=only)
