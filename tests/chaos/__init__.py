"""The chaos harness: a run is killed, stopped and started again on a seeded schedule, and its files must prove that
nothing was lost and nothing counted twice.

    python -m tests.chaos --kills 200                 timed stand-in workers, the real driver, real Ray
    python -m tests.chaos --engines real --kills 20   the nursery's models and engines
    python -m tests.chaos --soak 1800                 half an hour, with the driver's memory, files and threads watched

Everything runs on this machine, on its own Ray cluster; only processes of that cluster are harmed.
"""
