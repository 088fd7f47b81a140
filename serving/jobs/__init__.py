"""Jobs of the service: requests whose answer comes later, kept in a file so that neither they nor what was paid is lost."""
