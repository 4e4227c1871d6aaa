"""What is done with a request where it comes in: who it is, and whose span stands for it. Shared by gateway/ and calls/."""
