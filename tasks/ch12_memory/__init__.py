"""Chapter 12: memory augmented neural networks.

| section | task |
|---|---|
| Neural Turing Machines | `dnc_copy` trains one to copy; its other tasks are not covered yet |
| Attention-Based Memory Access; NTM Memory Addressing Mechanisms | `dnc_copy`, variant `ntm` |
| Differentiable Neural Computers | `dnc_copy` |
| Interference-Free Writing in DNCs | `dnc_copy` writes so; not isolated yet |
| DNC Memory Reuse | `dnc_copy`, variant `no_free_gates`; memory too small to do without: not yet |
| Temporal Linking of DNC Writes | `dnc_copy`, variants `no_links` and `book_link` |
| Understanding the DNC Read Head; The DNC Controller Network | `dnc_copy` uses both |
| Visualizing the DNC in Action | `dnc_copy` draws it |
| Implementing the DNC in PyTorch | `dnc_copy` |
| Teaching a DNC to Read and Comprehend | not covered yet |
"""

HEADLINE = "dnc_copy"
