"""A team's own documents (Markdown, text, HTML, PDF) as training data: chunks, questions with answers, instructions."""

from spiritlevel.data.documents.chunk import Chunk, cut
from spiritlevel.data.documents.document import Block, Document, UnreadableError
from spiritlevel.data.documents.make import DocumentCounts, DomainData, chunk_rows, make_demonstrations
from spiritlevel.data.documents.questions import ask_for_questions
from spiritlevel.data.documents.read import find_documents, read_document, read_documents
from spiritlevel.data.documents.structure import Structure

__all__ = [
    "Block",
    "Chunk",
    "Document",
    "DocumentCounts",
    "DomainData",
    "Structure",
    "UnreadableError",
    "ask_for_questions",
    "chunk_rows",
    "cut",
    "find_documents",
    "make_demonstrations",
    "read_document",
    "read_documents",
]
