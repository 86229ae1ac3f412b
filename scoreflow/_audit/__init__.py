"""Anyone's sampler, read back as rows and held to the theory."""
