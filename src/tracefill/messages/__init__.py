"""Layer 3: messages that someone reads later."""
