-- Releases a worker's entries without an attempt: they keep their places. The entry of a tenant that is to rest is removed from the stream.
-- ARGV: now, streams, consumer, then for each: stream, entry, id, tenant, rest until (ms; 0: it does not rest).
-- Gives 1; 0 while the index is lost.
even_when_full()
local consumer = ARGV[3]
if not epoch() then return 0 end
local is_free = false
for i = 4, #ARGV, 5 do
  local stream, entry, id, tenant, until_ms = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  local leased = leased_by(stream, {{entry, id}}, consumer)
  if #leased > 0 then
    if until_ms > 0 then
      remove(stream, leased)
      redis.call('ZADD', key_of(stream, 'resting'), 'GT', ARGV[i + 4], tenant)
      redis.call('ZREM', key_of(stream, 'due'), tenant)
      redis.call('ZADD', key_of(stream, 'asleep'), ARGV[i + 4], tenant)
    else
      is_free = true
      redis.call('XCLAIM', key_of(stream, 'jobs'), GROUP, FREE, '0', entry, 'JUSTID')
      redis.call('HSET', index, id, free_at(stream, entry))
    end
  end
end
ring(not is_free and MAYBE)
return 1
