FROM python:3.11-slim

RUN useradd --create-home cof
WORKDIR /opt/cof
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cof cof
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve]'

USER cof
EXPOSE 8000
ENTRYPOINT ["cof", "serve", "--host", "0.0.0.0"]
CMD ["tiny-early"]
