-- A worker gives entries back without an attempt: they keep their places. One whose tenant is to rest leaves the stream.
-- ARGV: now, lines, consumer, then for each: line, entry, id, tenant, rest until (ms; 0: it does not rest).
even_when_full()
local consumer = ARGV[3]
if not epoch() then return 0 end
for i = 4, #ARGV, 5 do
  local line, entry, id, tenant, until_ms = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  local leased = leased_by(line, {{entry, id}}, consumer)
  if #leased > 0 then
    if until_ms > 0 then
      remove(line, leased)
      redis.call('ZADD', of(line, 'resting'), 'GT', ARGV[i + 4], tenant)
      redis.call('ZREM', of(line, 'due'), tenant)
      redis.call('ZADD', of(line, 'asleep'), ARGV[i + 4], tenant)
    else
      redis.call('XCLAIM', of(line, 'jobs'), GROUP, FREE, '0', entry, 'JUSTID')
      redis.call('HSET', index, id, free_at(line, entry))
    end
  end
end
ring()
return 1
