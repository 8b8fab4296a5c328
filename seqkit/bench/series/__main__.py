from seqkit.bench.series.command import main

main()
