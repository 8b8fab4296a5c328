#!/usr/bin/env nextflow
// Score a VCF in shards of records and gather them in order.
//
//   nextflow run main.nf --variants in.vcf.gz --fasta ref.fa --ckpt RUN --out scored.vcf.gz [-profile slurm]

params.shards = 8
params.out = 'scored.vcf.gz'
params.options = ''

process SCORE {
    tag "${shard}/${params.shards}"
    // 143: SLURM's time limit was near. Nextflow gives a retry a fresh folder, so the parts that are done are kept in
    // one that stays.
    errorStrategy { task.exitStatus in [143, 137, 140] ? 'retry' : 'finish' }
    maxRetries 3
    input:
    val shard
    path variants
    path fasta
    path ckpt
    output:
    tuple val(shard), path("shard-${shard}.vcf.gz")
    script:
    def kept = "${workflow.workDir}/partial/${workflow.sessionId}"
    """
    mkdir -p ${kept}
    python -m seqkit predict --ckpt ${ckpt} --variants ${variants} --fasta ${fasta} ${params.options} \\
        --shard ${shard}/${params.shards} --out ${kept}/shard-${shard}.vcf.gz --resume
    cp ${kept}/shard-${shard}.vcf.gz .
    """
}

process GATHER {
    publishDir file(params.out).parent ?: '.', mode: 'copy'
    input:
    path parts
    output:
    path "${file(params.out).name}*"
    script:
    """
    python ${projectDir}/../gather.py ${file(params.out).name} ${parts}
    """
}

workflow {
    scored = SCORE(Channel.of(1..params.shards), file(params.variants), file(params.fasta), file(params.ckpt))
    GATHER(scored.toSortedList { a, b -> a[0] <=> b[0] }.map { rows -> rows.collect { it[1] } })
}
