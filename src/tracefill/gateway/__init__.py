"""Layer 1: a request enters the system and gets one id."""
