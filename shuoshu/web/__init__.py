"""The page in the browser: its tabs, its API, and the server of both."""
