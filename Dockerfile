FROM python:3.13-slim

WORKDIR /srv
RUN useradd --system --uid 10001 --no-create-home app

# The README and the package are part of what setuptools builds; sql/ and web/ are read where they stand.
COPY pyproject.toml setup.cfg README.md ./
COPY app app
RUN pip install --no-cache-dir --editable .[jwks,metrics,speed]
COPY sql sql
COPY web web

USER app
ENV HOST=0.0.0.0 PORT=3000 PYTHONDONTWRITEBYTECODE=1
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
CMD ["python", "-m", "app"]
