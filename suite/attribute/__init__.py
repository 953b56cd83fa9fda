"""Attribution: what do the kernels do to a task, and is that what they should do?

``request`` says what is compared, ``session`` takes pairs from live processes of the task and
``laps`` is what runs inside of them. What pairs and runs come to is in ``suite.report.effects``.
"""
