"""The machinery: runs tasks, times them, records them and judges them."""
