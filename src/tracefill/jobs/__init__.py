"""Layer 4: jobs that run later, or again and again."""
