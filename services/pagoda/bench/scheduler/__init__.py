"""The scheduler's core against simulated executors, with a virtual clock: policy, scale and failure without a GPU.

trace.py, workload.py     which requests arrive when, read from a file or generated
cost.py, executor.py      how long steps take, and executors that only keep count
cell.py, router.py        a core with its executors, and which of several cells a request goes to
simulation.py             the event loop
recorder.py, histogram.py what happened
report.py, fairness.py    what it is worth; table.py and plot.py show it
options.py, command.py    `pagoda bench scheduler`
"""
