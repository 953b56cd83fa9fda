"""The regression gate: is this revision slower than that one, and could we have seen it?

``decide`` judges paired timings, ``session`` takes them from live processes of two work trees,
``probe`` is what runs inside those processes. Any project with pytest-benchmark tests will do.
"""
