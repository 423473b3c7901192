"""How alembic runs the migrations: on the connection, and in the transaction, of service.database."""

from alembic import context

from service.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
