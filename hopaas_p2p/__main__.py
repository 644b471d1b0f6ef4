"""Makes `python -m hopaas_p2p` run the command `hopaas-p2p`."""

from hopaas_p2p.cli.main import main

if __name__ == "__main__":
    main()
