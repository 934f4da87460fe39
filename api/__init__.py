"""A shop's service: what people do with background tasks, done so that nothing is lost. The library's first user."""
