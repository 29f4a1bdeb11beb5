"""The same work on the workers of a dask.distributed cluster; needs the extra ``dask``.

The scheduler and its workers see submissions, releases and the batch's secret: a cluster of your own, reached over
``tls://`` where the network is not. A worker that dies takes no result with it: its work goes to another one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pangu_lab.errors import PanguLabError

Item = TypeVar("Item")
PATIENCE = 120.0  # seconds without any worker


def on_cluster(
    address: str, work: Callable[..., Any], items: Sequence[Item], arguments: Callable[[Item], tuple[Any, ...]]
) -> Iterator[tuple[Item, Any]]:
    """Each item with what ``work(*arguments(item))`` gave on a worker, or with the exception that stands for it.

    Only as much is sent as the workers can begin soon, so a large batch does not fill the scheduler's memory.

    Raises
    ------
    PanguLabError
        dask.distributed is not installed, nobody answers at ``address``, or no worker is left.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise PanguLabError('--dask needs dask.distributed: pip install "pangu-lab[dask]"') from error
    try:
        client = Client(address, timeout="20s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise PanguLabError(f"{address}: no dask scheduler answers ({error})") from error
    with client:
        waiting = list(items)
        sent: dict[Any, Item] = {}

        def send() -> Any:
            item = waiting.pop(0)
            future = client.submit(work, *arguments(item), pure=False)
            sent[future] = item
            return future

        try:
            client.wait_for_workers(1, timeout=PATIENCE)
            room = math.ceil(2 * max(1, sum(client.nthreads().values())))
            finished = as_completed(
                [send() for _ in range(min(room, len(waiting)))], raise_errors=False, loop=client.loop
            )
            for future in finished:
                item = sent.pop(future)
                yield item, future.result() if future.status == "finished" else future.exception()
                if waiting:
                    finished.add(send())
        except (TimeoutError, OSError) as error:
            raise PanguLabError(f"{address}: the cluster has no worker that answers ({error})") from error
        finally:
            client.cancel(list(sent))
