"""The passes: one file each; a pass imports the IR and nothing else of the project."""
