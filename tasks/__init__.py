"""The experiments: one file is one experiment of *Fundamentals of Deep Learning*, 2nd edition.

A folder ``tasks/`` of your own on ``PYTHONPATH`` adds its chapters to these.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
