from seqkit.cli import main

raise SystemExit(main())
