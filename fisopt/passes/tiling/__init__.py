"""What TileAttention is made of: masks, tables of masks, tiled blocks."""
