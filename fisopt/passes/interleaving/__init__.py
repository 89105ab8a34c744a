"""Frame interleaving: what becomes of one block."""
