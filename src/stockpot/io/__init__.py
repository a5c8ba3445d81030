"""Files: written whole or not at all, and what the kernel can be asked for them."""
