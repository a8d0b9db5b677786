"""Each question is asked once: the exact cache, whose stores outlive a process or are shared by machines, and the
semantic cache, which is off by default. Start with `cache`."""
