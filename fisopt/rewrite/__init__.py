"""The IR: Programs, how they are captured, analysed, rewritten, verified and costed."""
