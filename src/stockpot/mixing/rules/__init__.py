"""How a tensor of a mixture is made of those of its ingredients: one file for each rule."""
