"""The tables of procrastinate, the job queue, as its installed version defines them.

A later version of procrastinate brings migrations of its own: they become a revision here, each.
"""

from alembic import op
from procrastinate.schema import SchemaManager

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # The driver's own cursor: SQLAlchemy would take the colons and per cent signs for parameters.
    op.get_bind().connection.cursor().execute(SchemaManager.get_schema())
