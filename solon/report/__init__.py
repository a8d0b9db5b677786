"""What is shown to people in a browser: figures and the pages that hold them."""
