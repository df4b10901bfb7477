"""The report: what every notebook shares, then one module a notebook."""
