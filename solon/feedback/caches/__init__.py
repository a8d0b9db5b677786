"""The same question is asked once: the exact cache, where its verdicts outlive a process or are shared by machines, and
the semantic cache, which is off by default. Start with `cache`."""
