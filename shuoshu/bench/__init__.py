"""Speed beside nanoGPT and the machine's limit. Nothing else imports it."""
