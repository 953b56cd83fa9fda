"""Chapter 12: memory augmented neural networks.

| section | task |
|---|---|
| Neural Turing Machines | `ntm_copy`, `ntm_tasks` |
| Attention-Based Memory Access | `ntm_copy` draws where an NTM writes and reads |
| NTM Memory Addressing Mechanisms | `addressing`, variant `ntm`; `ntm_copy` uses them |
| Differentiable Neural Computers | `dnc_copy` |
| Interference-Free Writing in DNCs | `addressing`, beside variant `no_allocation` |
| DNC Memory Reuse | `dnc_memory_reuse`; `addressing` by a script |
| Temporal Linking of DNC Writes | `addressing`; `dnc_copy`, variants `no_links` and `book_link` |
| Understanding the DNC Read Head | `addressing` |
| The DNC Controller Network | `dnc_copy` |
| Visualizing the DNC in Action | `dnc_memory_reuse`, `dnc_copy` and `dnc_babi` draw it |
| Implementing the DNC in PyTorch | `dnc_copy`; `addressing` judges the listing's link matrix |
| Teaching a DNC to Read and Comprehend | `dnc_babi` |
"""

HEADLINE = "dnc_copy"
