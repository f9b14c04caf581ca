# The image that serve_configs/kubernetes/ names: Ray's own, with the pinned packages and this project.
# docker build -t routerretriever:0.1.0 .       Not built by us; a test follows its steps.
FROM rayproject/ray:2.60.0-py311-gpu

WORKDIR /home/ray/routerretriever
# Packages first: a change of the code then leaves their layer as it is.
COPY --chown=ray:users requirements-runtime.lock ./
RUN pip install --no-cache-dir -r requirements-runtime.lock
COPY --chown=ray:users pyproject.toml README.md LICENSE ./
COPY --chown=ray:users platform platform
COPY --chown=ray:users jobs/recipes jobs/recipes
RUN pip install --no-cache-dir --no-deps .
