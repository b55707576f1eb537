"""What every reader of a SAFE product shares: XML without tricks."""

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat


def check_xml(path: Path) -> None:
    """Raise ValueError for XML that is cut short or declares a document type, the only place for entities.

    Products of the ESA have none; a declared entity can read other files or grow without bound.
    """

    def refuse(name: str, *_: object) -> None:
        raise ValueError(f"{path} declares the document type {name!r}, which no SAFE has: do not use this product.")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise ValueError(f"{path} is not whole XML ({error}): fetch the product again.") from None


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file that `check_xml` finds harmless."""
    check_xml(path)
    return ElementTree.parse(path).getroot()
