"""The phases of fine-tuning and the loop around them."""
