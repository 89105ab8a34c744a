"""Op contracts: schema, plain-torch reference and fake of every operator that passes insert."""
