"""The experiments: one file is one experiment of *Fundamentals of Deep Learning*, 2nd edition."""
